"""Big files on a host: fetched by their hubs' own clients, verified always, visible only when complete."""
