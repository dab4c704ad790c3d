"""The mathematics: penalty, objectives, and problems with exact answers."""
