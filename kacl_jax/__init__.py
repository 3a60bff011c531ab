"""KACL in JAX: chest X-ray findings, classified and localized with a radiomics feedback loop.

This package imports nothing here: the radiomics worker processes pass through it.
"""
