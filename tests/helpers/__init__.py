"""Plain modules that the tests share."""
