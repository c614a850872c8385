"""Several processes of one training: how they meet, what they share out, what each has alone."""
