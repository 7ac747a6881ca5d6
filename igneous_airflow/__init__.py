"""Neuroglancer Precomputed volumes, worked on in proved steps, with and without Apache Airflow."""
