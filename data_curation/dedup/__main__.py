import sys

from data_curation.dedup import main

sys.exit(main())
