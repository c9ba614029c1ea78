from data_curation.embed import main

main()
