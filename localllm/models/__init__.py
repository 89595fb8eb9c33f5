"""What a transformer is: configuration, names, and the one decoder over the verbs of ops."""
