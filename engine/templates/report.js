"use strict";
// Read out the values of a chart's lines under the pointer, and those of the last epoch without one.
for (const chart of document.querySelectorAll(".chart")) {
  const { x, at, y } = JSON.parse(chart.dataset.values);
  const plot = chart.querySelector(".plot"), cursor = chart.querySelector(".cursor");
  const where = chart.querySelector("figcaption output");
  const values = [...chart.querySelectorAll(".legend output")];
  const show = place => {
    where.textContent = `epoch ${x[place]}`;
    values.forEach((output, line) => {
      const value = y[line][place];
      output.textContent = value === null ? "–"
        : Math.abs(value) < 1000 ? value.toPrecision(3) : Math.round(value).toString();
    });
  };
  plot.addEventListener("pointermove", event => {
    const box = plot.getBoundingClientRect();
    const pointer = (event.clientX - box.left) / box.width * plot.viewBox.baseVal.width;
    const place = at.reduce((best, value, i) =>
      Math.abs(value - pointer) < Math.abs(at[best] - pointer) ? i : best, 0);
    cursor.setAttribute("x1", at[place]);
    cursor.setAttribute("x2", at[place]);
    cursor.removeAttribute("visibility");
    show(place);
  });
  plot.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    show(x.length - 1);
  });
  show(x.length - 1);
}

// One image of several at a time, chosen with a slider or played one after the other.
for (const frames of document.querySelectorAll(".frames")) {
  const slider = frames.querySelector("input"), shown = frames.querySelector("output");
  const button = frames.querySelector("button"), images = [...frames.querySelectorAll("img")];
  let timer = null;
  const show = () => {
    images.forEach((image, place) => { image.hidden = place !== Number(slider.value); });
    shown.textContent = `epoch ${images[slider.value].dataset.epoch}`;
    slider.setAttribute("aria-valuetext", shown.textContent);
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  };
  slider.addEventListener("input", () => { stop(); show(); });
  button.addEventListener("click", () => {
    if (timer !== null) return stop();
    if (Number(slider.value) === images.length - 1) slider.value = 0;
    show();
    button.textContent = "Stop";
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (Number(slider.value) === images.length - 1) stop();
    }, 500);
  });
  show();
}
