"""How fast the suite is: each module prints and returns its figures."""
