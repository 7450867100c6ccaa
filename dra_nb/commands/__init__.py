"The commands of `dra-nb`, each a thin layer over the functions of other rooms."
