"""What both halves say to each other; needs the standard library and pydantic only."""
