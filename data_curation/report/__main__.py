from data_curation.report import main

main()
