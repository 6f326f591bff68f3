"""Pictures of what the methods do, for the eye."""
