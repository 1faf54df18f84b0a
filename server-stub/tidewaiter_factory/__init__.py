"""The factory's certificate authorities: profiles with their linter, issuing, and the command for test PKIs."""
