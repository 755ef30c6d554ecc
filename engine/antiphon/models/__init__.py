"""The networks, each as a light object over a dictionary of packed weights."""
