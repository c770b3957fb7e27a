"""What flowno costs, beside other frameworks and beside what it cost before."""
