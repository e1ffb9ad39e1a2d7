"""Actions that nobody wrote down: which of a few codes leads from one frame to the next."""
