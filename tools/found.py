"Prints the table of the page `What we found`, from the files in results/:    python tools/found.py"
from pathlib import Path

from robust_nb.findings import as_table, findings

if __name__ == "__main__": print(as_table(findings(Path(__file__).resolve().parents[1]/"results")))
