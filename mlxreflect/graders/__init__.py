"""One file a kind of answer: how it is read and when it is right."""
