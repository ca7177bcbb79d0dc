const q=document.getElementById('q');q.hidden=false;q.oninput=()=>{const s=q.value.toLowerCase();
for(const d of document.querySelectorAll('details.example'))d.hidden=!d.textContent.toLowerCase().includes(s)}
