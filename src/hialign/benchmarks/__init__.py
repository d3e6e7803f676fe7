"""What answers are worth: pure functions of answers, without torch and without anything else of this package."""
