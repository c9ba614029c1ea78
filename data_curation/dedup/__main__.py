from data_curation.dedup import main

main()
