"""What observes training: records, shows, saves, stops or rolls back."""
