"""What watches training: it records, shows, saves and stops, and never changes a number."""
