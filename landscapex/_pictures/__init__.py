"""How pictures are drawn; `landscapex.plot` is the way in."""
