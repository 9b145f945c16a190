"""What an event leads to; here it is only noted."""

booked = []


def book(event, amount):
    booked.append((event, amount))
