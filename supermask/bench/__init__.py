"""What the search and the format cost, each against its baseline in the same process."""
