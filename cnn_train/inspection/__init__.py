"""What each layer of a network sees, weighs and costs, as text and as pictures."""
