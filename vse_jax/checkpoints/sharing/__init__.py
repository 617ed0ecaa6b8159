"""A trained model as files for others: a folder for the Hub, programs without us."""
