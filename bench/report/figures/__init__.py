"""Measured numbers in documents, each written by a function from a results file and checked by a test.

python -m bench.report.figures            # writes them
python -m bench.report.figures --check    # says which differ
"""
