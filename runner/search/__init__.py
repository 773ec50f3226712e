"""Fair tuning: what is proposed, what it is worth, who wins. No trial is run or read here."""
