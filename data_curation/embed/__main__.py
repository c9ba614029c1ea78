import sys

from data_curation.embed import main

sys.exit(main())
