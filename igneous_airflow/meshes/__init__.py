"""What is meshed, where the fragments go, and what is left of them; used by the mesh stages."""
