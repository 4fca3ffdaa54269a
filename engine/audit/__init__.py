"""Which labels are probably wrong: the table, the review page, and what they say of a data set."""
