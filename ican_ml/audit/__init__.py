"""Audits of a cohort: do labels leak into features, and does mere bookkeeping predict the outcome?"""
