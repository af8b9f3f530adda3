"""The page: runs, trainings and evaluations to look at, as one file or live."""
