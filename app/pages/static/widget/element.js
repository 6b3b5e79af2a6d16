// <holdfast-booking venue="…">: registered when this module is loaded.
