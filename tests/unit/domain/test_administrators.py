    """A token that ann gives bob is hers as well; one that he makes is as much his as the one he used."""
