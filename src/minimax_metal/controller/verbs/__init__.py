"""The verbs of `metal` that run on the controller: arguments in, exit status out."""
