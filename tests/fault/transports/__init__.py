"""What clients must not be able to do to the fast transport."""
