import sys

from data_curation.report import main

sys.exit(main())
