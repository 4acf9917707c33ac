"""System checks for settings a self-hoster can get wrong."""
