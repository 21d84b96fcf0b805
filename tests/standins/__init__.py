"""Stand-ins for what runs boards: packages of the same name, whose cards are the simulated RTL."""
