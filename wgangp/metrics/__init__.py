"""Scores of a trained generator. One file per score; each score is a function that changes nothing."""
