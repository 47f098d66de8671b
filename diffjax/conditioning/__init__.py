"""From what a user says (a class, a sentence, a map) to the arrays that a network takes."""
