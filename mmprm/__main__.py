from mmprm.cli.main import main

raise SystemExit(main())
