"""The peers' own code: each as fast as its parts allow, and complete enough that nobody could leave anything out."""
