"""What several test modules share: programs to run against, fakes that keep the real thing's rules."""
