"""What every other part stands on: settings, errors, printing, random numbers, trace ranges."""
