"""Pictures of energies, of thinking and of training: data functions (torch) apart from plot functions (matplotlib, ``hf_elm[plot]``).

    from hf_elm.plots.energy_landscape import energy_landscape, plot_energy_landscape

    landscape = energy_landscape(model, tokenizer, "ROMEO:", think_steps=4)
    figure = plot_energy_landscape(landscape, mode="both", path="landscape.png")

Each picture is a module of that form. Energies: lower is likelier; nats.
"""
