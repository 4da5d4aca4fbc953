"""From finished runs, or a CSV of points, to laws and a verdict.

study_points.py, csv_points.py, columns.py   points of a study's folder; of a CSV, with columns by any name
fit.py, verdict.py                           all that is reported of them; what may be quoted
prediction.py                                what the grid says of larger runs before they start
learning_rates.py, loss_to_loss.py           curves of tuning runs; losses on two texts
noise_scales.py, critical_batch.py           gradient noise of a run; of a study's runs, and a law through it
reasons.py                                   many names with one reason in a line
"""
