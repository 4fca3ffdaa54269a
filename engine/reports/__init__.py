"""What a finished run and many of them are told as: pages and tables from run folders alone."""
