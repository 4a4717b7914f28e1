"""Accuracy, calibration and corruption errors of classifiers."""
