"""Colours of all pictures: Okabe and Ito's, which colour-blind readers tell apart."""

GREEN, ORANGE, BLUE = "#009E73", "#D55E00", "#0072B2"
INK, GREY, PALE = "#222222", "#767676", "#E6E6E6"
